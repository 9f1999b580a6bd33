"""Reading DICOM: `read.read_dicom` is the way in."""
