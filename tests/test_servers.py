"""The servers that other tests use are real: a database by its URL, a bucket by its URL, nothing left."""

import psycopg
import pyarrow.fs
import sqlalchemy
from servers import SECRET


def test_a_database_by_its_url_alone(postgres, postgres_url):
    assert SECRET in postgres_url
    engine = sqlalchemy.create_engine(postgres_url)
    with engine.begin() as c:
        c.execute(sqlalchemy.text("CREATE TABLE horse (name text)"))
        assert c.execute(sqlalchemy.text("SELECT version()")).scalar().startswith("PostgreSQL")
    with psycopg.connect(postgres.database()) as c:  # another database is empty
        assert not c.execute("SELECT 1 FROM pg_tables WHERE tablename = 'horse'").fetchall()
    engine.dispose()


def test_a_bucket_by_its_url_alone(s3, s3_store):
    fs, path = pyarrow.fs.FileSystem.from_uri(s3)
    with fs.open_output_stream(f"{path}/a/b.txt") as f:
        f.write(b"seven")
    bucket = s3.removeprefix("s3://")
    assert s3_store.client().get_object(Bucket=bucket, Key="a/b.txt")["Body"].read() == b"seven"
