"""Running a trained network on a scan, calibrated and on the source grid."""
