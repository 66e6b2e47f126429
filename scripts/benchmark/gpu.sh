#!/usr/bin/env bash
# Everything that has to be known of cait-hf on one NVIDIA GPU, in at most 8 minutes. Nothing is installed or downloaded.
#
#     OUT=outputs/gpu bash scripts/benchmark/gpu.sh
#     python scripts/benchmark/run.py --tables outputs/gpu       # what BENCHMARKS.md has of it
#
#   a  every Triton kernel against float64: shapes of all ten architectures, outputs and gradients, three dtypes
#   b  a small search over launches of the kernels; it prints the best of each shape
#   c  attention and whole models against timm, eager and compiled, and a ViT with FlashAttention: time, peak memory
#   d  both training scripts for 100 steps in bf16, fp16 and compiled, on generated images
#   e  three minutes of training the Fashion-MNIST model, the first of them its teacher
#
# Variables, with their defaults; paths start at the folder of the repository:
#   OUT=outputs/gpu    folder for the results: JSON files, log.txt, fashion_mnist.tar.gz (8 files at most)
#   PARTS="a b c d e"  which parts
#   SIZE=full          or tiny: every part small, on the CPU, the kernels in Triton's interpreter
#   PYTHON=python3
#   FASHION_MNIST=data/fashion-mnist  for e: what scripts/prepare_fashion_mnist.py --output_dir wrote
#
# It starts with the packages it found, and which parts are left out for want of one. Where nothing can be installed,
# bring what is missing along. For example (pure Python; what is not, such as pyarrow, must be of the same platform):
#     pip install --no-deps --target wheels datasets dill multiprocess evaluate
#     PYTHONPATH=$PWD/wheels OUT=outputs/gpu bash scripts/benchmark/gpu.sh
#
# First comes what needs no quiet, side by side: a, the candidates of b, compiling for c and d, e. What is timed follows,
# alone on the machine. A part that fails or takes too long stops no other; the exit status is 1 if one did.
set -u
cd "$(dirname "$0")/../.." || exit

OUT=${OUT:-outputs/gpu}
PARTS=${PARTS:-a b c d e}
SIZE=${SIZE:-full}
PYTHON=${PYTHON:-python3}
export FASHION_MNIST=${FASHION_MNIST:-data/fashion-mnist}

# Seconds, 470 together: the first for everything that is not timed, then b, c and d.
TOGETHER=185 SEARCH=50 MODELS=130 TRAINING=105
cores=$(nproc)

case $SIZE in
full)
    tiny=()
    export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
    ;;
tiny)
    tiny=(--tiny) cores=1
    TOGETHER=600 SEARCH=300 MODELS=300 TRAINING=300 # a CPU can be slow, and busy
    export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES=
    ;;
*)
    echo "error: SIZE is $SIZE, but it must be full or tiny." >&2
    exit 2
    ;;
esac

work=$(mktemp -d)
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TMPDIR=$work
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME=$work/huggingface TOKENIZERS_PARALLELISM=false
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor TORCHINDUCTOR_COMPILE_THREADS=4
scripts=scripts/benchmark

runnable=$("$PYTHON" "$scripts"/gpu.py plan "$OUT" "$PARTS") || {
    rm -rf "$work"
    exit 2
}

# Also what an interruption left
collect() {
    local status=$? log
    for log in "$work"/*.log; do
        [ -e "$log" ] && printf '\n===== %s\n' "$(basename "$log" .log)" && cat "$log"
    done >"$OUT/log.txt"
    [ -e "$work/models/results.json" ] && cp "$work/models/results.json" "$OUT/models.json"
    rm -f "$work"/?-compile*.ended # it comes again in c and d
    cat "$work"/*.ended >"$work/ended" 2>/dev/null
    "$PYTHON" "$scripts"/gpu.py summary "$OUT" "$work/ended" || status=1
    rm -rf "$work"
    exit $status
}
trap collect EXIT
trap 'cat "$work"/*.pid 2>/dev/null | xargs -r kill; exit 143' INT TERM

# run PART STEP SECONDS COMMAND...: one step of a part, if the part can run here
run() {
    local part=$1 step=$2 seconds=$3 start=$SECONDS status
    shift 3
    case " $runnable " in *" $part "*) ;; *) return 0 ;; esac
    timeout --kill-after=5 "$seconds" "$@" >"$work/$step.log" 2>&1 &
    echo $! >"$work/$step.pid"
    wait $!
    status=$?
    rm -f "$work/$step.pid"
    echo "$part $status $((SECONDS - start))" >>"$work/$step.ended"
    echo "$step: exit status $status after $((SECONDS - start)) s" >&2
}

several=$((cores > 4 ? cores * 3 / 8 : 1))
kernels=("$PYTHON" "$scripts"/attention_kernels.py)
training=("$PYTHON" "$scripts"/gpu_training.py)

run a a-kernels $TOGETHER "${kernels[@]}" check "$OUT/kernels.json" --processes $several "${tiny[@]}" &
run b b-candidates $TOGETHER "${kernels[@]}" candidates "$work/candidates.json" \
    --seconds $((TOGETHER - 20)) --processes $((several + 1)) "${tiny[@]}" &
run e e-fashion-mnist $TOGETHER "${training[@]}" fashion_mnist "$OUT/fashion_mnist.json" --data "$FASHION_MNIST" \
    --seconds $((TOGETHER - 20)) --workers $several "${tiny[@]}" &
if [ "$SIZE" = full ]; then
    models=(--goals --device cuda --use_compiled --keep_going --repeats 9 --max_seconds 3)
    # what cannot be compiled here is compiled later, so nothing is lost but time
    run d d-compile $TOGETHER "${training[@]}" speed "$work/compiled.json" --compiled_only --steps 2 --workers 2 &
    for index in 1 2 3; do
        run c "c-compile-$index" $TOGETHER "$PYTHON" "$scripts"/run.py --goals --device cuda --no_charts \
            --compile_only $index/3 &
    done
else
    models=(--models tiny --image_sizes 32 --batch_sizes 2 --modes "inference,attention" --repeats 1)
    models+=(--baselines "ours,timm,vit")
fi
wait

run b b-search $SEARCH "${kernels[@]}" search "$OUT/launches.json" --candidates "$work/candidates.json" "${tiny[@]}"
run c c-models $MODELS "$PYTHON" "$scripts"/run.py "${models[@]}" --no_charts --output_dir "$work/models"
run d d-training $TRAINING "${training[@]}" speed "$OUT/training.json" "${tiny[@]}"
