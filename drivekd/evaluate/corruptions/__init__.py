"""DriveBench's picture settings: clean, NoImage and fifteen corruptions, in numpy and Pillow, seeded.

    images = corrupted_frame(images, "Fog", seed=frame_seed(0, sample.frame))    # {camera: uint8 RGB [H, W, 3]}

settings.py     their names, groups, severities        frame.py    a frame's cameras are corrupted; which are hit
weather.py      Fog, Rain, Snow                        light.py    Brightness, LowLight, Saturate
blur.py         MotionBlur, ZoomBlur                   lens.py     WaterSplash, LensObstacle
sensor.py       CameraCrash, FrameLost, NoImage        transmission.py    BitError, ColorQuant, H.265

The definitions are DriveBench's (arXiv 2501.04003), which takes Brightness, Fog, MotionBlur, Saturate, Snow and ZoomBlur from the
common corruptions of Hendrycks & Dietterich (2019, arXiv 1903.12261). The code is our own and so are its random numbers: a
picture is not the one of the published files, but one of the same kind and strength. Lengths in pixels are those of a picture
1600 px wide, as nuScenes has them, and shrink with the picture.
"""

from .frame import corrupted_frame, frame_seed, implementation
from .settings import DEFAULT_SEVERITY, GROUPS, SETTINGS

__all__ = ["DEFAULT_SEVERITY", "GROUPS", "SETTINGS", "corrupted_frame", "frame_seed", "implementation"]
