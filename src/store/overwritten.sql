-- The number and the key of an attempt that runs are not lost when another program writes others over
-- them: the next attempt counts on from there, and the output of this one is known by its key.
CREATE TRIGGER casparian_attempt_overwritten AFTER UPDATE OF attempt, attempt_key ON cf_processing_queue
    WHEN OLD.status = 'RUNNING' AND OLD.id IS NEW.id
        AND (NEW.attempt IS NOT OLD.attempt OR NEW.attempt_key IS NOT OLD.attempt_key)
        AND typeof(OLD.attempt) = 'integer' AND OLD.attempt & 4294967295 > 0
BEGIN
    INSERT OR IGNORE INTO cf_job_attempt
        (job_id, attempt, worker_id, hostname, pid, started, status, attempt_key)
        VALUES (OLD.id, OLD.attempt, OLD.worker_id, OLD.worker_host, OLD.worker_pid,
            OLD.claim_time, 'TAKEN', OLD.attempt_key);
END;
