-- RUNNING rows are read in parts, by ID.
DROP INDEX IF EXISTS ix_casparian_running;
CREATE INDEX ix_casparian_running
    ON cf_processing_queue (id) WHERE status = 'RUNNING';
