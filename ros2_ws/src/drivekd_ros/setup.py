"""ament_python package: the node, the player and the listener."""

from setuptools import setup

setup(
    name="drivekd_ros",
    version="0.1.0",
    description="Lifecycle node of drivekd. Advisory output, developed to no ASIL, never the sole input to actuation.",
    license="Apache-2.0",
    packages=["drivekd_ros", "drivekd_ros.answer", "drivekd_ros.input", "drivekd_ros.state"],
    package_data={"drivekd_ros": ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/drivekd_ros"]),
        ("share/drivekd_ros", ["package.xml"]),
    ],
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "node = drivekd_ros.main:main",
            "player = drivekd_ros.player:main",
            "listener = drivekd_ros.listener:main",
        ],
    },
)
