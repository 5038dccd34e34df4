"""The command line: `phonograph encode|decode|stream|info|models|config|demo|verify|bench`.

Each module is split off by what it knows: `app` the commands and how they end, `paths` files and folders, `console` streams and
terminals, `live` what runs through pipes as it comes, `codec`, `stream`, `inspect`, `config`, `demo`, `verify` and `bench` one
command or two each, `figure` how the demo's picture is drawn. Nothing here imports torch or numpy before a command needs them.
"""

from phonograph.cli.app import main

__all__ = ["main"]
