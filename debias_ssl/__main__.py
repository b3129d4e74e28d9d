"""`python -m debias_ssl`, which is `debias-ssl`."""

from debias_ssl.cli import main

main()
