"""A head for `hemolens analyze --demo`: anatomy, bleeds, scanner and DICOM, each in a module of its own."""
