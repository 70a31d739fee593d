"""Files that users have become Samples: `read_samples`, whatever the format. How a file of each format looks: formats.py.

1. json_stream: a file becomes values, one at a time.   2. formats: what the file is.   3. messages, drivelm, drivebench,
nuscenes_qa: a value becomes Samples, or problems by record and field.   4. sample_file: all of it behind one face.
"""

from .problem import PROBLEM_KINDS, ParsedRecord, Problem, ProblemKind
from .sample_file import ReadSummary, SampleFile, check_images, read_file, read_samples

__all__ = [
    "PROBLEM_KINDS",
    "ParsedRecord",
    "Problem",
    "ProblemKind",
    "ReadSummary",
    "SampleFile",
    "check_images",
    "read_file",
    "read_samples",
]
