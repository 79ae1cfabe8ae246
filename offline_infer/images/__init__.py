"""Read and write images: NIfTI, MetaImage, NRRD, GIPL, DICOM series, PNG, JPEG, BMP, TIFF.

===================  =====================================================================================
``formats``          endings and readers by name
``frame``            :class:`Image`, and the tests a frame must pass
``streams``          bytes to float32, in bounded memory, checksums verified
``nifti``            NIfTI headers and voxels
``stored``           where MetaImage, NRRD and GIPL files keep their voxels: ``metaimage``, ``nrrd``, ``gipl``
``itk``              SimpleITKIO, SimpleITKIOWithReorient
``dicom``            DICOM series; ``dicom_tags`` what ITK does not report of them
``nibabel_volume``   NibabelIO, NibabelIOWithReorient
``pictures``         NaturalImage2DIO
``tiff``             Tiff3DIO
``split_channels``   four-dimensional files into one file per channel
``reading, writing`` the functions exported here
``isolation``        the same in a child process, which ``reader_process`` is
===================  =====================================================================================
"""

from offline_infer.images.formats import IMAGE_ENDINGS, READERS, VOLUME_ENDINGS, WRITABLE_ENDINGS, split_ending
from offline_infer.images.image import Image
from offline_infer.images.reading import read_geometry, read_image, read_labels
from offline_infer.images.writing import write_labels

__all__ = [
    "IMAGE_ENDINGS",
    "READERS",
    "VOLUME_ENDINGS",
    "WRITABLE_ENDINGS",
    "Image",
    "read_geometry",
    "read_image",
    "read_labels",
    "split_ending",
    "write_labels",
]
