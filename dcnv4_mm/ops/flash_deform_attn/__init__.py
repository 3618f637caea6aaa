"""Multi-scale deformable attention: schemas, references, layout helpers and public functions."""
