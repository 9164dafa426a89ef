-- Who a worker proved to be (its CURVE key and the key's name), NULL where nobody has to: its jobs
-- are that user's affair.

ALTER TABLE cf_worker_session ADD COLUMN user_id TEXT;
