-- Environments whose jobs fail on a worker for now, as JSON: {hash: reason}.
ALTER TABLE cf_worker_session ADD COLUMN environments TEXT;
