"""The DCNv4 operator: schema, reference, layout helpers and public function."""
