-- Failures with limits of their own: another program had the database of a sink locked, the input changed
-- while the job ran, the plugin process was killed.
ALTER TABLE cf_processing_queue ADD COLUMN locked_count INTEGER;
ALTER TABLE cf_processing_queue ADD COLUMN changed_count INTEGER;
ALTER TABLE cf_processing_queue ADD COLUMN killed_count INTEGER;
