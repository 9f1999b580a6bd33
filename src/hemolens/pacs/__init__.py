"""The PACS service: images in by DICOM, results back beside them."""
