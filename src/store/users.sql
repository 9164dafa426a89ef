-- The authenticated user of a worker (its CURVE key and the key's name). NULL where workers are not
-- authenticated. Only this user may report on the worker's jobs.

ALTER TABLE cf_worker_session ADD COLUMN user_id TEXT;
