"""From a volume in Hounsfield units to what a network sees, and back onto the source grid."""
