"""Deformable attention of BEV queries to cameras: schema, references and the public function."""
