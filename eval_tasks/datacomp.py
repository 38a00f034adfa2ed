"""DataComp's evaluation: 40 tasks, of which 38 have a score (Gadre et al. 2023, Sec. 3.5).

A task's name is DataComp's key, its title DataComp's name. Each is in one group; DataComp averages the first four
(ImageNet, its distribution shifts, VTAB, retrieval) and all 38.
"""

from __future__ import annotations

from dataclasses import replace

from benchmark import register_suite, register_task
from benchmark.evaluation.tasks import (
    Association,
    FaceAttributes,
    GroupedClassification,
    GroupField,
    Retrieval,
    Suite,
    Task,
    ZeroShotClassification,
)

PER_CLASS = "mean_per_class_recall"

_GROUPS: dict[str, list[Task]] = {
    "imagenet": [
        ZeroShotClassification(name="imagenet1k", title="ImageNet 1k", size=50_000, num_classes=1000),
    ],
    "imagenet_shifts": [
        ZeroShotClassification(name="imagenet_sketch", title="ImageNet Sketch", size=50_889, num_classes=1000),
        ZeroShotClassification(name="imagenetv2", title="ImageNet v2", size=10_000, num_classes=1000),
        ZeroShotClassification(name="imagenet-a", title="ImageNet-A", size=7_500, num_classes=200),
        ZeroShotClassification(name="imagenet-o", title="ImageNet-O", size=2_000, num_classes=200),
        ZeroShotClassification(name="imagenet-r", title="ImageNet-R", size=30_000, num_classes=200),
        ZeroShotClassification(name="objectnet", title="ObjectNet", size=18_574, num_classes=113),
    ],
    "vtab": [
        ZeroShotClassification(
            name="vtab/caltech101", title="Caltech-101", size=6_085, num_classes=102, main_metric=PER_CLASS
        ),
        ZeroShotClassification(name="vtab/cifar100", title="CIFAR-100", size=10_000, num_classes=100),
        ZeroShotClassification(name="vtab/clevr_count_all", title="CLEVR Counts", size=15_000, num_classes=8),
        ZeroShotClassification(
            name="vtab/clevr_closest_object_distance", title="CLEVR Distance", size=15_000, num_classes=6
        ),
        ZeroShotClassification(name="vtab/dtd", title="Describable Textures", size=1_880, num_classes=47),
        ZeroShotClassification(name="vtab/eurosat", title="EuroSAT", size=5_400, num_classes=10),
        ZeroShotClassification(
            name="vtab/kitti_closest_vehicle_distance", title="KITTI Vehicle Distance", size=711, num_classes=4
        ),
        ZeroShotClassification(
            name="vtab/flowers", title="Oxford Flowers-102", size=6_149, num_classes=102, main_metric=PER_CLASS
        ),
        ZeroShotClassification(
            name="vtab/pets", title="Oxford-IIIT Pet", size=3_669, num_classes=37, main_metric=PER_CLASS
        ),
        ZeroShotClassification(name="vtab/pcam", title="PatchCamelyon", size=32_768, num_classes=2),
        ZeroShotClassification(name="vtab/resisc45", title="RESISC45", size=6_300, num_classes=45),
        ZeroShotClassification(name="vtab/svhn", title="SVHN", size=26_032, num_classes=10),
        ZeroShotClassification(name="sun397", title="SUN397", size=108_754, num_classes=397),
    ],
    "retrieval": [
        Retrieval(
            name="retrieval/flickr_1k_test_image_text_retrieval",
            title="Flickr",
            size=1_000,
            hub_rows="nlphuji/flickr_1k_test_image_text_retrieval",
        ),
        Retrieval(
            name="retrieval/mscoco_2014_5k_test_image_text_retrieval",
            title="MSCOCO",
            size=5_000,
            hub_rows="nlphuji/mscoco_2014_5k_test_image_text_retrieval",
        ),
        Association(name="misc/winogavil", title="WinoGAViL", size=3_563, hub_rows="nlphuji/winogavil"),
    ],
    "wilds": [
        ZeroShotClassification(
            name="wilds/iwildcam",
            title="iWildCam",
            size=42_791,
            num_classes=182,
            main_metric="F1-macro_all",
            macro=True,
        ),
        GroupedClassification(
            name="wilds/camelyon17",
            title="Camelyon17",
            size=85_054,
            num_classes=2,
            main_metric="acc1",
            group_fields=(GroupField("slide", 1),),  # of hospital, slide, y
        ),
        GroupedClassification(
            name="wilds/fmow",
            title="FMoW",
            size=22_108,
            num_classes=62,
            main_metric="acc_worst_region",
            # Of region, year, y. Region 5 is WILDS' "Other"; DataComp's worst region may be that one.
            group_fields=(GroupField("year", 1), GroupField("region", 0, rest=5)),
        ),
    ],
    "fairness": [
        GroupedClassification(
            name="fairness/dollar_street",
            title="Dollar Street",
            size=3_503,
            num_classes=58,
            main_metric="acc_top5_wg",
            group_fields=(GroupField("income_ds", 0),),  # of income_ds, income_meta, region
            top5=True,
        ),
        GroupedClassification(
            name="fairness/geode",
            title="GeoDE",
            size=12_488,
            num_classes=40,
            group_fields=(GroupField("region", 0),),  # of region, country
        ),
        FaceAttributes(name="fairness/fairface", title="FairFace", size=10_954),
        FaceAttributes(name="fairness/utkface", title="UTKFace", size=23_703),
    ],
    "other": [
        ZeroShotClassification(name="cifar10", title="CIFAR-10", size=10_000, num_classes=10),
        ZeroShotClassification(name="country211", title="Country211", size=21_100, num_classes=211),
        ZeroShotClassification(
            name="fgvc_aircraft", title="FGVC Aircraft", size=3_333, num_classes=100, main_metric=PER_CLASS
        ),
        ZeroShotClassification(name="food101", title="Food-101", size=25_250, num_classes=101),
        ZeroShotClassification(name="gtsrb", title="GTSRB", size=12_630, num_classes=43),
        ZeroShotClassification(name="mnist", title="MNIST", size=10_000, num_classes=10),
        ZeroShotClassification(name="voc2007", title="Pascal VOC 2007", size=14_976, num_classes=20),
        ZeroShotClassification(name="renderedsst2", title="Rendered SST2", size=1_821, num_classes=2),
        ZeroShotClassification(name="cars", title="Stanford Cars", size=8_041, num_classes=196),
        ZeroShotClassification(name="stl10", title="STL-10", size=8_000, num_classes=10),
    ],
}

# Scored tasks that do not tell runs apart at a scale, by the rule of leaderboard/checkpoints.py; a test compares.
_UNINFORMATIVE = {
    "small": (
        "vtab/clevr_count_all",
        "vtab/clevr_closest_object_distance",
        "vtab/eurosat",
        "vtab/kitti_closest_vehicle_distance",
        "vtab/pcam",
        "vtab/svhn",
        "wilds/iwildcam",
        "wilds/camelyon17",
        "wilds/fmow",
        "country211",
        "fgvc_aircraft",
        "mnist",
        "renderedsst2",
    ),
    "medium": (
        "vtab/clevr_count_all",
        "vtab/clevr_closest_object_distance",
        "vtab/kitti_closest_vehicle_distance",
        "vtab/pcam",
        "vtab/svhn",
        "wilds/iwildcam",
        "wilds/camelyon17",
        "wilds/fmow",
        "fgvc_aircraft",
        "mnist",
        "renderedsst2",
    ),
    "large": (
        "vtab/clevr_closest_object_distance",
        "vtab/kitti_closest_vehicle_distance",
        "vtab/pcam",
        "wilds/camelyon17",
        "wilds/fmow",
        "renderedsst2",
    ),
    "xlarge": (
        "vtab/clevr_closest_object_distance",
        "vtab/kitti_closest_vehicle_distance",
        "vtab/pcam",
        "wilds/camelyon17",
        "fairness/dollar_street",
        "cifar10",
        "renderedsst2",
    ),
}

_tasks = [register_task(replace(task, groups=(group,))) for group, tasks in _GROUPS.items() for task in tasks]
_scored = tuple(task.name for task in _tasks if task.is_scored)
register_suite(
    Suite(
        name="datacomp",
        version=1,
        tasks=_scored,
        unscored=tuple(task.name for task in _tasks if not task.is_scored),
        informative={
            scale: tuple(name for name in _scored if name not in left_out) for scale, left_out in _UNINFORMATIVE.items()
        },
    )
)
