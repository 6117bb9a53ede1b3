# The versions that are tested together, without a compiler:
#
#     docker build -t dnamamba .
#     docker run --rm -v "$PWD:/data" dnamamba pretrain --genome hg38.fa --out runs/hg38
#
# With NVIDIA's container toolkit `docker run --gpus all` gives it the GPUs. Apptainer: `apptainer build dnamamba.sif
# docker-daemon://dnamamba:latest`, then `apptainer run --nv dnamamba.sif VERB ...`.
FROM python:3.12-slim

WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY dnamamba dnamamba
COPY kernels kernels
RUN pip install --no-cache-dir -c constraints.txt .

# Numba's kernels and token stores of read-only genomes: any user of the container may write there.
ENV NUMBA_CACHE_DIR=/tmp/numba XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
ENTRYPOINT ["dnamamba"]
CMD ["--help"]
