# One image for the Prefect server, the workers, Dask and JupyterLab: the same pinned versions everywhere.
FROM python:3.11.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY store/ store/
COPY pipeline/ pipeline/
COPY flows/ flows/
# Editable, as `make install` does it, so that the flow's entrypoint and the installed package are the same files.
RUN pip install --constraint constraints.txt --editable '.[notebook,s3,cluster]'

FROM python:3.11.13-slim-bookworm
# Fixed numbers, so that a volume keeps its owner from one image to the next.
RUN groupadd --gid 1000 head2toe && useradd --uid 1000 --gid head2toe --create-home head2toe \
    && mkdir -p /app /home/head2toe/.cache && chown head2toe:head2toe /app /home/head2toe/.cache
COPY --from=build /venv /venv
COPY --from=build --chown=head2toe:head2toe /app /app
WORKDIR /app
COPY --chown=head2toe:head2toe prefect.yaml ./
COPY --chown=head2toe:head2toe configs/ configs/
COPY --chown=head2toe:head2toe notebooks/ notebooks/
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
# By number, which a host without this user can check too.
USER 1000:1000
# Made here so that named volumes mounted over them belong to the user.
RUN mkdir demo work
CMD ["head2toe", "--help"]
