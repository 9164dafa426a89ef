-- File version and plugin of the running attempt when it was claimed. A receipt counts only while the row
-- still has them. NULL in rows of earlier releases, and while no attempt runs.
ALTER TABLE cf_processing_queue ADD COLUMN dispatched TEXT;
