"""The script that `hemolens web` runs for every page."""

from hemolens.web.shell import run

run()
