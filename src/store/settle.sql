-- Output that may be visible without a receipt, after the end of a job.

-- 1 = an attempt may have left output without the word of its worker: when the job has ended, a
-- worker has to bring that in line with the row. 0 = none has. NULL = an attempt runs, or none has.
-- 2 = as 1, but the row cannot be used for that.
ALTER TABLE cf_processing_queue ADD COLUMN unsettled INTEGER;
-- A random number of the sentinel that dispatched the attempt: copies of the database give the same
-- numbers to different attempts.
ALTER TABLE cf_processing_queue ADD COLUMN attempt_key INTEGER;
ALTER TABLE cf_job_attempt ADD COLUMN attempt_key INTEGER;
CREATE INDEX ix_casparian_unsettled ON cf_processing_queue (id) WHERE unsettled = 1;

-- Another program takes a running job from its worker, for example by SKIPPED. Our own changes set
-- the column.
CREATE TRIGGER casparian_job_taken AFTER UPDATE OF status ON cf_processing_queue
    WHEN NEW.unsettled IS NULL
        AND OLD.status = 'RUNNING' AND NEW.status IS NOT 'RUNNING'
        AND typeof(OLD.attempt) = 'integer' AND OLD.attempt & 4294967295 > 0
BEGIN
    UPDATE cf_processing_queue SET unsettled = 1 WHERE id = NEW.id;
    INSERT OR IGNORE INTO cf_job_attempt
        (job_id, attempt, worker_id, hostname, pid, started, status, attempt_key)
        VALUES (OLD.id, OLD.attempt, OLD.worker_id, OLD.worker_host, OLD.worker_pid,
            OLD.claim_time, 'TAKEN', OLD.attempt_key);
END;
