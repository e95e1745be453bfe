#!/usr/bin/env bash
# The paper's tables, row by row, on several GPUs: benchmarks/compare/run_table.sh TABLE GPUS [--dry-run]
# TABLE is one of 1-detection, 1-segmentation, 2, 3, 4 (4: COCO; the paper's other tables are VOC).
# Every row is trained and scored by tools/dist_train.sh; what is cut goes on, and upgrades come after their baselines.
set -e
root=$(cd "$(dirname "$0")/../.." && pwd)
tools=$root/tools configs=$root/configs
table=${1:-} gpus=${2:-} dry=${3:-}
frcnn=faster_rcnn/faster-rcnn_r101-caffe-dc5 deeplab=deeplabv3/deeplabv3_r101-d8 voc=512x512
case "$table" in
    1-detection)
        rows="${frcnn}_4xb4-12e_voc0712"
        for n in 1 2 3 6; do rows+=" $frcnn-dcn${n}_4xb4-12e_voc0712 $frcnn-upgrade${n}_4xb4-3e_voc0712"; done ;;
    1-segmentation)
        rows="${deeplab}_4xb4-20k_voc12aug-$voc"
        for n in 1 2 3 6; do
            rows+=" $deeplab-dcn${n}_4xb4-20k_voc12aug-$voc $deeplab-upgrade${n}_4xb4-5k_voc12aug-$voc"
        done ;;
    2) rows="ssd/ssd512_r50_240e_voc0712 ssd/ssd512_r50-dcn_240e_voc0712 ssd512_upgrade" ;;
    3)
        rows="ssd/ssd512_r50_200e_voc0712 ssd/ssd512_r50-upgrade_50e_voc0712 ssd/ssd512_r50-upgrade-gluoncv_50e_voc0712"
        for size in 320 416; do
            yolo=yolov3/yolov3_d53-$size
            rows+=" ${yolo}_200e_voc0712 $yolo-upgrade_50e_voc0712 $yolo-upgrade-gluoncv_50e_voc0712"
        done ;;
    4)
        rows="ssd/ssd512_r50_280e_coco ssd/ssd512_r50-upgrade_70e_coco ssd/ssd512_r50-upgrade-gluoncv_70e_coco"
        for size in 320 416 608; do
            yolo=yolov3/yolov3_d53-$size
            rows+=" ${yolo}_280e_coco $yolo-upgrade_70e_coco $yolo-upgrade-gluoncv_70e_coco"
        done ;;
    *) gpus='' ;;
esac
if ! [[ "$gpus" =~ ^[1-9][0-9]*$ ]] || { [ -n "$dry" ] && [ "$dry" != --dry-run ]; }; then
    echo "usage: $0 1-detection|1-segmentation|2|3|4 GPUS [--dry-run]" >&2
    exit 2
fi
for row in $rows; do
    command=("$tools/dist_train.sh" "$configs/$row.py" "$gpus" --work-dir "work_dirs/$(basename "$row")" --resume)
    if [ -n "$dry" ]; then
        echo "${command[*]}"
    else
        "${command[@]}"
    fi
done
