"""`python -m sharecap_client.cli`: the `sharecap` command."""

from sharecap_client.cli.app import main

main()
