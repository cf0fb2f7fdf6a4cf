"""`python -m service`: run the gateway alone, configured by environment variables."""

from service.app import main

main()
