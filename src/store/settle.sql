-- Output that may be visible without a receipt, after the end of a job.

-- 1 = a worker has to bring the job's output in line with its row. 0 = the sentinel that ended it
-- knows of none. NULL = while it waits or runs.
ALTER TABLE cf_processing_queue ADD COLUMN unsettled INTEGER;
CREATE INDEX ix_casparian_unsettled ON cf_processing_queue (id) WHERE unsettled = 1;

-- Another program ends a job that has had an attempt, for example by SKIPPED.
CREATE TRIGGER casparian_job_ended AFTER UPDATE OF status ON cf_processing_queue
    WHEN NEW.unsettled IS NULL
        AND OLD.status IN ('RUNNING', 'QUEUED', 'PENDING')
        AND NEW.status NOT IN ('RUNNING', 'QUEUED', 'PENDING')
        AND typeof(OLD.attempt) = 'integer' AND OLD.attempt & 4294967295 > 0
BEGIN
    UPDATE cf_processing_queue SET unsettled = 1 WHERE id = NEW.id;
END;
