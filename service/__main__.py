"""`python -m service`: the gateway alone, set up by the environment."""

from service.app import main

main()
