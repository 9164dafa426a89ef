-- Since when a sentinel or a worker of the old system may have run the job, in milliseconds since the
-- epoch; they keep no records of what they publish. NULL = they have not, or an attempt of ours has
-- been COMPLETED since.
ALTER TABLE cf_processing_queue ADD COLUMN old_since_ms INTEGER;

-- A row that was claimed and has no attempt was dispatched by a sentinel of the old system, whose
-- times are in a zone that is not known.
CREATE TRIGGER casparian_job_was_old AFTER UPDATE OF claim_time ON cf_processing_queue
    WHEN OLD.claim_time IS NOT NULL AND OLD.attempt IS 0
BEGIN
    UPDATE cf_processing_queue SET old_since_ms = min(
            (strftime('%s', OLD.claim_time) - 86400) * 1000,
            coalesce(old_since_ms, (strftime('%s', OLD.claim_time) - 86400) * 1000))
        WHERE id = NEW.id AND strftime('%s', OLD.claim_time) IS NOT NULL;
END;

-- The routing ID of a worker of the old system that has chosen one other than its ID: it identifies
-- itself once in its life, so a later sentinel knows it by that. NULL = as its ID, or not of use.
ALTER TABLE cf_worker_session ADD COLUMN routing_id TEXT;
