-- Hash of the sinks that a job had when it was claimed last; NULL in rows of earlier releases.
ALTER TABLE cf_processing_queue ADD COLUMN sinks_hash TEXT;
-- The file version that the output in `published` was made of; NULL in rows of earlier releases.
ALTER TABLE cf_processing_queue ADD COLUMN published_version_id INTEGER;
