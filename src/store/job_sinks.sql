-- Hash of the sinks that a job had when it was claimed last; NULL in rows of earlier releases.
ALTER TABLE cf_processing_queue ADD COLUMN sinks_hash TEXT;
