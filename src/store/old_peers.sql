-- Since when a sentinel or worker of the reference system may have run the job, in milliseconds since the
-- epoch. Such programs keep no records of what they publish. NULL = none has run it, or an attempt of a
-- Casparian worker has been COMPLETED since.
ALTER TABLE cf_processing_queue ADD COLUMN old_since_ms INTEGER;

-- A row with a claim time and without an attempt was dispatched by a sentinel of the reference system. The
-- time zone of its times is unknown, so a day is subtracted.
CREATE TRIGGER casparian_job_was_old AFTER UPDATE OF claim_time ON cf_processing_queue
    WHEN OLD.claim_time IS NOT NULL AND OLD.attempt IS 0
BEGIN
    UPDATE cf_processing_queue SET old_since_ms = min(
            (strftime('%s', OLD.claim_time) - 86400) * 1000,
            coalesce(old_since_ms, (strftime('%s', OLD.claim_time) - 86400) * 1000))
        WHERE id = NEW.id AND strftime('%s', OLD.claim_time) IS NOT NULL;
END;

-- The routing ID of a worker of the reference system, where it differs from the worker ID. Such a worker
-- sends IDENTIFY only once, so a later sentinel recognizes it by its routing ID. NULL = the same as the
-- worker ID, or not needed.
ALTER TABLE cf_worker_session ADD COLUMN routing_id TEXT;
