#!/usr/bin/env bash
# The experiments of docs/results/composite.md: benchmarks/compare/composite.sh [PART ...]
# PARTs, in the order in which they need each other: data, warped, plain, segmentor, detector2, depth, recipes (default: all).
# PART gpu, which is not among those by default, composes the sets of 512 pixels, too, and runs composite_plan.py.
# SEEDS="0 1 2", REPEATS=1 (fine-tunes of each baseline), THREADS=2 and AT_ONCE=4 can be set. Finished runs are not
# repeated, one that was cut goes on. Needs tuxpaint-stamps-default, mate-backgrounds, plasma-workspace-wallpapers and
# lomiri-wallpapers-16.04 of Debian, and a caffe-style ImageNet ResNet-50 as data/resnet50_caffe_imagenet.pth
# (docs/data.md).
set -e
cd "$(dirname "$0")/../.."
python=${PYTHON:-python} seeds=${SEEDS:-0 1 2} repeats=${REPEATS:-1} out=docs/results/composite
export OMP_NUM_THREADS=${THREADS:-2}
ssd=benchmarks/compare/configs/ssd256_r50_12e_cutouts

compose() {  # KIND SIZE FOLDER
    # shellcheck disable=SC2046  # a flag or nothing
    $python benchmarks/datasets/compose_cutouts.py --cutouts data/debian/cutouts \
        --backgrounds data/debian/backgrounds --distractors data/debian/distractors \
        --out "data/composite/$3/VOCdevkit" --train 400 --val 160 --test 240 --size "$2" --seed 0 \
        $([ "$1" = plain ] && echo --no-warp)
}

data() {
    [ -f data/resnet50_caffe_imagenet.pth ] || { echo 'data/resnet50_caffe_imagenet.pth is missing, see docs/data.md' >&2; exit 2; }
    [ -d data/debian ] || $python benchmarks/datasets/collect_debian_cutouts.py --out data/debian
    for kind in warped plain; do compose $kind 256 $kind; done
}

arms() {  # CONFIG METRIC NAME
    # shellcheck disable=SC2086  # a list of seeds
    $python benchmarks/compare/four_arms.py "$1" --metric "$2" --seeds $seeds --repeats "$repeats" \
        --work-dir "work_dirs/composite/$3" --out "$out/$3"
}

warped() { arms $ssd.py pascal_voc/mAP warped; }
plain() { arms $ssd-nowarp.py pascal_voc/mAP plain; }
segmentor() { arms benchmarks/compare/configs/deeplabv3_r50-d16_cutouts.py mIoU segmentor; }
detector2() { arms benchmarks/compare/configs/faster-rcnn_r50-caffe-dc5_12e_cutouts.py pascal_voc/mAP detector2; }
depth() {
    # shellcheck disable=SC2086
    $python benchmarks/compare/depth_study.py $ssd.py --metric pascal_voc/mAP --work-dir work_dirs/composite/warped \
        --depths 0 1 2 3 6 9 --seeds $seeds --repeats "$repeats" --size 256 --threads "$OMP_NUM_THREADS" --out $out/depth
}
recipes() {
    # shellcheck disable=SC2086
    $python benchmarks/compare/try_recipes.py $ssd.py benchmarks/compare/composite_recipes.py --metric pascal_voc/mAP \
        --work-dir work_dirs/composite/warped --seeds $seeds --repeats "$repeats" --reference rate_x03 --out $out/recipes
}
gpu() {
    for kind in warped plain; do compose $kind 512 ${kind}512; done
    $python benchmarks/compare/run_side_by_side.py benchmarks/compare/composite_plan.py --at-once "${AT_ONCE:-4}"
}

parts=("$@")
[ $# -gt 0 ] || parts=(data warped plain segmentor detector2 depth recipes)
for part in "${parts[@]}"; do
    case "$part" in
        data | warped | plain | segmentor | detector2 | depth | recipes | gpu) ;;
        *) echo "usage: $0 [data] [warped] [plain] [segmentor] [detector2] [depth] [recipes] [gpu]" >&2; exit 2 ;;
    esac
done
for part in "${parts[@]}"; do "$part"; done
