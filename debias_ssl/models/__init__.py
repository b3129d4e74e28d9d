"""Networks: `build` makes an image classifier that returns (logits, features); CLIP, encoders, adapters."""

from debias_ssl.models.adapters import merged as merged
from debias_ssl.models.classifier import Classifier as Classifier
from debias_ssl.models.classifier import ModelConfig as ModelConfig
from debias_ssl.models.classifier import batch_norms as batch_norms
from debias_ssl.models.classifier import build as build
from debias_ssl.models.classifier import check_images as check_images
from debias_ssl.models.classifier import load_weights as load_weights
