-- Output that may be visible without a receipt, after the end of a job.

-- 1 = an attempt may have left output without the word of its worker: when the job has ended, a
-- worker has to bring that in line with the row. 0 = none has. NULL = an attempt runs, or none has.
ALTER TABLE cf_processing_queue ADD COLUMN unsettled INTEGER;
CREATE INDEX ix_casparian_unsettled ON cf_processing_queue (id) WHERE unsettled = 1;

-- Another program takes a running job from its worker, for example by SKIPPED. Our own changes set
-- the column.
CREATE TRIGGER casparian_job_taken AFTER UPDATE OF status ON cf_processing_queue
    WHEN NEW.unsettled IS NULL
        AND OLD.status = 'RUNNING' AND NEW.status IS NOT 'RUNNING'
        AND typeof(OLD.attempt) = 'integer' AND OLD.attempt & 4294967295 > 0
BEGIN
    UPDATE cf_processing_queue SET unsettled = 1 WHERE id = NEW.id;
END;
