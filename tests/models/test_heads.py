import torch

from debias_ssl.models import build


def test_a_linear_head_is_a_linear_function_of_the_features():
    model = build("linear", 3, in_chans=5)
    images = torch.randn(4, 5, 1, 1)
    logits, features = model(images)
    assert features.equal(images.flatten(1)) and model.num_features == 5
    torch.testing.assert_close(logits, features @ model.net.fc.weight.T + model.net.fc.bias)


def test_a_hidden_layer_is_rectified_and_counted():
    model = build("mlp_512", 3, in_chans=5, drop_rate=0.5).eval()
    logits, features = model(torch.randn(4, 5, 1, 1))
    assert features.shape == (4, 512) and model.num_features == 512 and logits.shape == (4, 3)
    assert (features >= 0).all() and (features > 0).any()
    assert (model.train()(torch.ones(1, 5, 1, 1))[1] == 0).float().mean() > 0.4
