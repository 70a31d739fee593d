"""Small files in the formats that data sets are published in, with everything real ones have besides what is read; made up here.

write_drivelm        v1_1_train_nus.json: scene -> key_frames -> frame -> {key_object_infos, QA, image_paths}, pixel tags
write_drivebench     a flat array, one record a question, normalised tags
write_descriptions   DriveBench's visual_description.json: the objects of scenes, without questions
write_drivekd        Drive-KD's demo file, two of its answers with broken tags
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drivekd.sample import CAMERAS

SCENES = {"scene-7a": ("frame-10", "frame-11", "frame-12", "frame-13"), "scene-7b": tuple(f"frame-2{n}" for n in range(5))}

# (topic, question, answer, kind). "No entry." and "No such action ..." begin like a no and are none.
QUESTIONS = (
    ("perception", "What stands to the left of the ego car?", "A parked van and two cones.", "open"),
    ("perception", "Is there a bus behind the ego car?", "No.", "yesno"),
    ("perception", "What does <c2,CAM_FRONT,700.5,321.0> look like?", "No entry.", "open"),
    ("prediction", "Will <c1,CAM_BACK,1080.0,495.0> cross the ego car's way?", "Yes, from the right.", "yesno"),
    ("prediction", "How does <c1,CAM_BACK,1080.0,495.0> move? Options: A. On. B. Back. C. It stands.", "C", "choice"),
    ("planning", "Which action would hit <c1,CAM_BACK,1080.0,495.0>?", "No such action will hit it.", "open"),
    ("planning", "What is safe here?", "Slow down behind <c2,CAM_FRONT,700.5,321.0>.", "open"),
    ("behavior", "Predict the behavior of the ego vehicle.", "It goes straight, slowly.", "open"),
)
UNREAD = {"C": None, "con_up": None, "con_down": None, "cluster": None, "layer": None}
OBJECT = {
    "Category": "Vehicle",
    "Status": "Moving",
    "Visual_description": "A grey van.",
    "2d_bbox": [966.0, 403.5, 1224.0, 591.5],
}


def picture_name(camera: str, frame: str) -> str:
    """As nuScenes names pictures: log, camera, microseconds."""
    return f"samples/{camera}/n099-2031-02-03-04-05-06+0100__{camera}__19{frame.removeprefix('frame-')}00000000000.jpg"


def write_pictures(folder: Path) -> None:
    """Every picture of SCENES below `folder`; no two have the same bytes."""
    for frame in (frame for frames in SCENES.values() for frame in frames):
        for camera in CAMERAS:
            path = folder / picture_name(camera, frame)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{camera} at {frame}".encode())


def write_drivelm(path: Path, *, topics: tuple[str, ...] = ("perception", "prediction", "planning", "behavior")) -> Path:
    """SCENES with the QUESTIONS of these topics, each frame with all six pictures."""
    return _write(path, {s: {"scene_description": "x", "key_frames": _drivelm_frames(fs, topics)} for s, fs in SCENES.items()})


def _drivelm_frames(frames: tuple[str, ...], topics: tuple[str, ...]) -> dict[str, Any]:
    qa = {t: [{"Q": q, "A": a, **UNREAD, "tag": [2]} for topic, q, a, _ in QUESTIONS if topic == t] for t in topics}
    return {
        frame: {
            "key_object_infos": {"<c1,CAM_BACK,1080.0,495.0>": OBJECT},
            "QA": qa,
            "image_paths": {camera: f"../nuscenes/{picture_name(camera, frame)}" for camera in CAMERAS},
        }
        for frame in frames
    }


def write_descriptions(path: Path, scenes: dict[str, tuple[str, ...]]) -> Path:
    infos = {"<c1,CAM_FRONT,767.5,513.5>": OBJECT}
    frames = {scene: {frame: {"key_object_infos": infos} for frame in names} for scene, names in scenes.items()}
    return _write(path, {s: {"scene_description": "x", "key_frames": key_frames} for s, key_frames in frames.items()})


# (question_type, question, answer, cameras, kind)
DRIVEBENCH = (
    ("perception", "What matters in this scene?", "A van: <c1,CAM_BACK,0.5100,0.5800>.", CAMERAS, "open"),
    ("perception", "How does <c1,CAM_BACK,0.5100,0.5800> move? Options: A. On. B. Left.", "A", ("CAM_BACK",), "choice"),
    ("prediction", "Is <c1,CAM_BACK,0.5100,0.5800> a barrier?", "No.", ("CAM_BACK",), "yesno"),
    ("planning", "Which action would hit <c1,CAM_BACK,0.5100,0.5800>?", "Reversing.", ("CAM_BACK",), "open"),
    ("planning", "What is safe here?", "Keep going.", CAMERAS, "open"),
    ("behavior", "Predict it. Options: A. It is steering left. It is slow. B. It stands.", "B", CAMERAS, "choice"),
)


def write_drivebench(path: Path) -> Path:
    tokens = {"scene_token": "scene-9c", "frame_token": "frame-90", "tag": [1]}
    return _write(
        path,
        [
            {**tokens, "question_type": topic, "question": question, "answer": answer, "image_path": _below_data(cameras)}
            for topic, question, answer, cameras, _ in DRIVEBENCH
        ],
    )


def _below_data(cameras: tuple[str, ...]) -> dict[str, str]:
    return {camera: f"data/nuscenes/{picture_name(camera, 'frame-90')}" for camera in cameras}


# (question_type, question, answer, pictures, kind); tags in the answers of records 2 and 3 are broken: cut, outside the picture
DRIVEKD = (
    (
        "perception",
        "How does <c1,CAM_FRONT,0.4500,0.6700> move? Options: A. On. B. Left.",
        "Final: {A. On.}  \nA van.",
        1,
        "choice",
    ),
    (
        "perception",
        "What matters in this scene?",
        "- <c1,CAM_BACK,0.0900,0.7900>, a van\nIDs: <c4,CAM_FRONT,0.8400,0.83",
        6,
        "open",
    ),
    ("reasoning", "What is noticed first?", "First: <c1,CAM_FRONT,4.30,0.85>, a van; State: it stands", 6, "open"),
    (
        "reasoning",
        "Predict it. Options: A. It is steering left. It is slow. B. It is fast.",
        "Final: A. It is slow.",
        6,
        "choice",
    ),
    ("planning", "What follows from <c1,CAM_FRONT,0.1800,0.5600>?", "Action: keep going  \nProbability: High", 1, "open"),
    ("planning", "What is safe here?", "brake gently; the road is wet.", 6, "open"),
    ("planning", "Which action would hit<c1,CAM_FRONT,0.3500,0.4600>", "Collision:\n- Action: accelerating", 1, "open"),
)


def write_drivekd(path: Path) -> Path:
    """Its pictures are named as the published file names them, and are not there."""
    return _write(path, [_drivekd_record(number, *record) for number, record in enumerate(DRIVEKD)])


def _drivekd_record(number: int, capability: str, question: str, answer: str, pictures: int, kind: str) -> dict[str, Any]:
    frame = f"frame-3{number}"
    one, six = [f".../100k/train/0{number}afb9da-81ca742d.jpg"], [f".../nuscenes/{picture_name(c, frame)}" for c in CAMERAS]
    messages = [{"role": "user", "content": "<image>" * pictures + question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": one if pictures == 1 else six, "question_type": capability}


def _write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path
