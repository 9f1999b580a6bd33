"""hemolens finds, classifies, outlines and measures intracranial hemorrhage on head CT.

Research use only: not a medical device.
"""

__version__ = "0.1.0"
