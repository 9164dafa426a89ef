-- File version and plugin of the attempt that runs, as they were when it was claimed: a receipt counts
-- only while the row still has them. NULL in rows of earlier releases, and when no attempt runs.
ALTER TABLE cf_processing_queue ADD COLUMN dispatched TEXT;
