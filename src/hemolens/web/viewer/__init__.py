"""The viewer: `show` draws a study with overlays in the page and returns what the user did with the tools."""

from hemolens.web.viewer.component import show, show_3d
from hemolens.web.viewer.model import Overlay, Tool, ViewerEvent, label_overlay

__all__ = ["Overlay", "Tool", "ViewerEvent", "label_overlay", "show", "show_3d"]
