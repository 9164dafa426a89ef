-- Hash of the sinks that a job had when it was last claimed. NULL in rows of earlier releases.
ALTER TABLE cf_processing_queue ADD COLUMN sinks_hash TEXT;
-- The file version from which the output in `published` was made. NULL in rows of earlier releases.
ALTER TABLE cf_processing_queue ADD COLUMN published_version_id INTEGER;

-- Rows that run alone are claimed separately, so that other rows are found without reading them.
DROP INDEX IF EXISTS ix_casparian_claim;
CREATE INDEX ix_casparian_claim
    ON cf_processing_queue (plugin_name, (coalesce(shared_count, 0) >= 2), priority DESC, id)
    WHERE status = 'QUEUED';
