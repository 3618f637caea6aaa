# Everything that `make install` makes: docker build -t dcnv4_mm .
FROM python:3.11-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make unzip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /dcnv4_mm
COPY . .
RUN make install
ENV PATH=/dcnv4_mm/.venv/bin:$PATH
CMD ["python", "-m", "dcnv4_mm.env"]
