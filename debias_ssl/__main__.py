"""Runs `debias-ssl` as `python -m debias_ssl`."""

from debias_ssl.cli import main

main()
