"""The pages of the app and where each is drawn.

A page of a study is a module with ``show(study: Study, ui) -> None``; a page that needs none has ``show(ui) -> None``.
`ui` is Streamlit, or a column or tab of it. Modules are imported when their page is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Page:
    """One page of the app."""

    path: str
    """Its last part in the address bar."""
    title: str
    icon: str
    module: str
    """Under `hemolens.web`."""
    section: str
    needs_study: bool = True

    def load(self) -> Any:
        """Import the module that draws it."""
        return import_module(f"hemolens.web.{self.module}")


PAGES: tuple[Page, ...] = (
    Page("view", "View", ":material/view_in_ar:", "viewing", "This scan"),
    Page("correct", "Correct", ":material/brush:", "corrections_page", "This scan"),
    Page("compare", "Compare", ":material/compare:", "compare", "This scan"),
    Page("explain", "Explain", ":material/lightbulb:", "explanations", "This scan"),
    Page("report", "Report", ":material/description:", "reports", "This scan"),
    Page("uncertain", "Most uncertain first", ":material/sort:", "uncertain", "All scans", needs_study=False),
    Page("worklist", "Worklist", ":material/list:", "worklist", "All scans", needs_study=False),
    Page("training", "Training", ":material/monitoring:", "training", "Models", needs_study=False),
    Page("models", "Models", ":material/deployed_code:", "models", "Models", needs_study=False),
)
"""In the order of the menu. The first page, `start`, opens scans and is drawn by the shell itself."""
