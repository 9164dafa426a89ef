-- Environments that a worker reports as unusable for now, so that it gets none of their jobs: JSON {hash:
-- reason}.
ALTER TABLE cf_worker_session ADD COLUMN environments TEXT;
