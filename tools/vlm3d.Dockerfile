# VLM3D container (Task 2, abnormalities of chest CT): code and checkpoints, and nothing else. Build from the repository root:
#   docker build -f tools/vlm3d.Dockerfile --build-arg CHECKPOINTS=runs/ct/final -t fomo-vlm3d .
#   docker run --rm --gpus all --network none --cap-drop ALL --security-opt no-new-privileges --read-only \
#     -v $PWD/input:/input:ro -v $PWD/output:/output fomo-vlm3d
# grand-challenge.org runs it as its own USER; with `--user $(id -u):$(id -g)` it runs as anybody. Upload: docker save fomo-vlm3d | gzip
# cuDNN 9.1; of newer images take one with 9.15 or later (Blackwell needs it): those between are wrong in 3D (pytorch#163539)
FROM pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime
RUN pip install --no-cache-dir "numpy>=1.26" "scipy>=1.11" "nibabel>=5.2" "pyyaml>=6.0"
ARG CHECKPOINTS
RUN : "${CHECKPOINTS:?wanted: --build-arg CHECKPOINTS=runs/ct/final}"
COPY fomo /app/fomo
COPY tools/predict_vlm3d.py /app/tools/predict_vlm3d.py
COPY ${CHECKPOINTS} /app/checkpoints
# what a checkout holds besides the code goes; everybody may read the rest; the last line loads and checks the checkpoints, and compiles
RUN find /app/fomo -type f ! -name "*.py" -delete && \
    find /app ! -perm -a+r -exec chmod a+rX {} + && \
    ln -s tools/predict_vlm3d.py /app/predict.py && \
    mkdir -p /input /output && \
    cd /app && python -c "from fomo.prediction import vlm3d; vlm3d.load(['checkpoints'], 'cpu')"
# a volume that is mounted on /output takes its owner from here
RUN useradd --system --no-create-home user && chown user /output
USER user
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1 LC_ALL=C.UTF-8
ENTRYPOINT ["python", "/app/predict.py"]
