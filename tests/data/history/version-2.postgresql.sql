CREATE TABLE alerts (
    number bigint NOT NULL,
    seen_us bigint NOT NULL,
    id text NOT NULL,
    rule text NOT NULL,
    severity text NOT NULL,
    kind text NOT NULL,
    model text NOT NULL,
    label text NOT NULL,
    uid text NOT NULL,
    orig_key bytea,
    resp_key bytea,
    subject_key bytea,
    acknowledged_us bigint,
    record text NOT NULL
);
CREATE SEQUENCE alerts_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE alerts_number_seq OWNED BY alerts.number;
CREATE TABLE flows (
    number bigint NOT NULL,
    seen_us bigint NOT NULL,
    source text NOT NULL,
    label text NOT NULL,
    nearest text NOT NULL,
    confidence double precision NOT NULL,
    unknown boolean NOT NULL,
    alternatives text NOT NULL,
    model text NOT NULL,
    version text NOT NULL,
    final boolean NOT NULL,
    port_label text,
    unexpected_port boolean,
    sensor text NOT NULL,
    uid text NOT NULL,
    start_us bigint NOT NULL,
    duration_us bigint NOT NULL,
    proto text NOT NULL,
    orig_key bytea NOT NULL,
    orig_p integer NOT NULL,
    resp_key bytea NOT NULL,
    resp_p integer NOT NULL,
    up bigint NOT NULL,
    down bigint NOT NULL,
    orig_pkts bigint NOT NULL,
    resp_pkts bigint NOT NULL,
    orig_ip_bytes bigint NOT NULL,
    resp_ip_bytes bigint NOT NULL,
    ip_bytes bigint NOT NULL,
    service text NOT NULL,
    conn_state text NOT NULL,
    server_name text NOT NULL,
    payload_lengths bytea NOT NULL,
    orig_bytes bytea NOT NULL,
    resp_bytes bytea NOT NULL
);
CREATE SEQUENCE flows_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE flows_number_seq OWNED BY flows.number;
CREATE TABLE minutes (
    minute_us bigint NOT NULL,
    is_trace boolean NOT NULL,
    label text NOT NULL,
    model text NOT NULL,
    sensor text NOT NULL,
    count bigint NOT NULL,
    ip_bytes bigint NOT NULL
);
CREATE TABLE tapline_history (
    schema_version integer NOT NULL
);
CREATE TABLE traces (
    number bigint NOT NULL,
    seen_us bigint NOT NULL,
    source text NOT NULL,
    label text NOT NULL,
    nearest text NOT NULL,
    confidence double precision NOT NULL,
    unknown boolean NOT NULL,
    alternatives text NOT NULL,
    model text NOT NULL,
    version text NOT NULL,
    final boolean NOT NULL,
    subject_kind text NOT NULL,
    subject text NOT NULL,
    subject_key bytea,
    start_us bigint NOT NULL,
    end_us bigint NOT NULL,
    flows bigint NOT NULL,
    cut bigint NOT NULL,
    suspicion double precision,
    suspicious boolean,
    top_flows text NOT NULL
);
CREATE SEQUENCE traces_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE traces_number_seq OWNED BY traces.number;
CREATE TABLE tries (
    minute_us bigint NOT NULL,
    orig_key bytea NOT NULL,
    source text NOT NULL,
    sensor text NOT NULL,
    without_payload bigint NOT NULL,
    below_min_packets bigint NOT NULL,
    ports bytea NOT NULL,
    peers bytea NOT NULL,
    more boolean NOT NULL
);
ALTER TABLE ONLY alerts ALTER COLUMN number SET DEFAULT nextval('alerts_number_seq'::regclass);
ALTER TABLE ONLY flows ALTER COLUMN number SET DEFAULT nextval('flows_number_seq'::regclass);
ALTER TABLE ONLY traces ALTER COLUMN number SET DEFAULT nextval('traces_number_seq'::regclass);
INSERT INTO alerts VALUES (1, 1795794594437007, 'a', 'ssh-elsewhere', 'low', 'flow', 'random', 'ssh', 'C1', '\x040a000005', '\x04c0000201', NULL, NULL, '{"id":"a","time_us":1700000000000000,"rule":"ssh-elsewhere","severity":"low","kind":"flow","message":"SSH on port 443","model":"random","version":"1","label":"ssh","confidence":0.5,"uid":"C1","orig_h":"10.0.0.5","orig_p":40000,"resp_h":"192.0.2.1","resp_p":443}');
INSERT INTO alerts VALUES (3, 1795794594437015, 'c', 'malware', 'critical', 'trace', 'random', 'trickbot', '', NULL, NULL, '\x040a000107', NULL, '{"id":"c","time_us":1700000000000000,"rule":"malware","severity":"critical","kind":"trace","message":"SSH on port 443","model":"random","version":"1","label":"trickbot","subject":"10.0.1.7","top_uids":["C1","C\u0000"]}');
INSERT INTO alerts VALUES (4, 1795794594437017, 'd', 'a new device', 'medium', 'trace', 'devices', 'unknown', '', NULL, NULL, NULL, NULL, '{"id":"d","time_us":1700000000000000,"rule":"a new device","severity":"medium","kind":"trace","message":"SSH on port 443","model":"devices","version":"1","label":"unknown","unknown":true,"subject":"00:17:88:01:02:03"}');
INSERT INTO alerts VALUES (5, 1795794594437018, 'e', 'drift', 'low', 'drift', 'random', '', '', NULL, NULL, NULL, NULL, '{"id":"e","time_us":1700000000000000,"rule":"drift","severity":"low","kind":"drift","message":"SSH on port 443","model":"random","version":"1","reason":"labels"}');
INSERT INTO alerts VALUES (2, 1795794594437013, 'b', 'scan', 'high', 'rate', 'random', '', 'C2', '\x0620010db8000000000000000000000001', '\x04c0000201', NULL, 1795794594680705, '{"id":"b","time_us":1700000000000000,"rule":"scan","severity":"high","kind":"rate","message":"SSH on port 443","model":"random","version":"1","uid":"C2","orig_h":"2001:db8::1","orig_p":40000,"resp_h":"192.0.2.1","resp_p":443,"matches":40}');
INSERT INTO flows VALUES (1, 1795794594414276, 'ws://127.0.0.1:9997', 'tls', 'tls', 0.99, false, '[["http",0.0625]]', 'random', '1', true, 'tls', false, 'gate', 'a', 1700000000000000, 1500, 'tcp', '\x040a000005', 40000, '\x04c0000201', 443, 1, 1, 4, 5, 500, 1700, 2200, '', '', '', '\x682c0188fa', '\x', '\x');
INSERT INTO flows VALUES (2, 1795794594414310, 'ws://127.0.0.1:9997', 'dns', 'dns', 0.7, false, '[["http",0.0625]]', 'random', '1', true, NULL, NULL, 'lab', 'b', 1700000000000000, 1500, 'tcp', '\x040a000105', 40000, '\x04c0000201', 53, 1, 1, 4, 5, 500, 1700, 2200, '', '', '', '\x682c0188fa', '\x', '\x');
INSERT INTO flows VALUES (3, 1795794594414317, 'ws://127.0.0.1:9997', 'ssh', 'ssh', 0.95, false, '[["http",0.0625]]', 'random', '1', true, 'a', true, 'gate', 'c', 1700000000000000, 1500, 'tcp', '\x0620010db8000000000000000000000005', 40000, '\x0620010db8000000000000000000000001', 443, 1, 1, 4, 5, 500, 1700, 2200, '', '', '', '\x682c0188fa', '\x', '\x');
INSERT INTO flows VALUES (4, 1795794594414321, 'ws://127.0.0.1:9997', 'unknown', 'dns', 0.3, true, '[["http",0.0625]]', 'random', '1', true, NULL, NULL, 'gate', 'd', 1700000000000000, 1500, 'tcp', '\x040a000005', 40000, '\x040a000105', 80, 1, 1, 4, 5, 500, 1700, 2200, '', '', '', '\x682c0188fa', '\x', '\x');
INSERT INTO flows VALUES (5, 1795794594414323, 'ws://127.0.0.1:9997', 'tls', 'tls', 0.5, false, '[["http",0.0625]]', 'other', '1', false, NULL, NULL, 'gate', 'e', 1700000000000000, 1500, 'tcp', '\x040a000005', 40000, '\x04c0000201', 443, 1, 1, 4, 5, 500, 1700, 2200, '', '', '', '\x682c0188fa', '\x', '\x');
INSERT INTO minutes VALUES (1795794540000000, false, 'dns', 'random', 'lab', 1, 2200);
INSERT INTO minutes VALUES (1795794540000000, false, 'ssh', 'random', 'gate', 1, 2200);
INSERT INTO minutes VALUES (1795794540000000, false, 'tls', 'other', 'gate', 1, 2200);
INSERT INTO minutes VALUES (1795794540000000, false, 'tls', 'random', 'gate', 1, 2200);
INSERT INTO minutes VALUES (1795794540000000, false, 'unknown', 'random', 'gate', 1, 2200);
INSERT INTO minutes VALUES (1795794540000000, true, 'camera', 'devices', '', 1, 0);
INSERT INTO tapline_history VALUES (2);
INSERT INTO traces VALUES (1, 1795794594436994, 'ws://127.0.0.1:9997', 'camera', 'camera', 0.9, false, '[]', 'devices', '2', true, 'mac', '00:17:88:01:02:03', NULL, 1700000000000000, 1700000600000000, 3, 1, 0.9, true, '[{"uid":"C1","community_id":"1:x","start_us":5,"duration_us":7,"proto":"udp","orig_h":"10.0.0.5","orig_p":1,"resp_h":"10.0.0.9","resp_p":2,"ip_bytes":100,"label":"DNS","share":0.75,"server_name":"cam.example"}]');
INSERT INTO tries VALUES (1795794540000000, '\x040a000005', 'ws://127.0.0.1:9997', 'gate', 0, 1, '\x01bb', '\x04c0000201', false);
SELECT pg_catalog.setval('alerts_number_seq', 5, true);
SELECT pg_catalog.setval('flows_number_seq', 5, true);
SELECT pg_catalog.setval('traces_number_seq', 1, true);
ALTER TABLE ONLY alerts
    ADD CONSTRAINT alerts_pkey PRIMARY KEY (number);
ALTER TABLE ONLY flows
    ADD CONSTRAINT flows_pkey PRIMARY KEY (number);
ALTER TABLE ONLY minutes
    ADD CONSTRAINT minutes_pkey PRIMARY KEY (minute_us, is_trace, label, model, sensor);
ALTER TABLE ONLY traces
    ADD CONSTRAINT traces_pkey PRIMARY KEY (number);
ALTER TABLE ONLY tries
    ADD CONSTRAINT tries_pkey PRIMARY KEY (minute_us, orig_key, source, sensor);
CREATE INDEX alerts_host ON alerts USING btree (subject_key, number);
CREATE INDEX alerts_id ON alerts USING btree (id);
CREATE INDEX alerts_orig ON alerts USING btree (orig_key, number);
CREATE INDEX alerts_resp ON alerts USING btree (resp_key, number);
CREATE INDEX alerts_seen ON alerts USING btree (seen_us);
CREATE INDEX flows_early ON flows USING btree (uid) WHERE (final IS FALSE);
CREATE INDEX flows_label ON flows USING btree (label, number);
CREATE INDEX flows_orig ON flows USING btree (orig_key, number);
CREATE INDEX flows_port ON flows USING btree (resp_p, number);
CREATE INDEX flows_resp ON flows USING btree (resp_key, number);
CREATE INDEX flows_seen ON flows USING btree (seen_us);
CREATE INDEX flows_uid ON flows USING btree (uid);
CREATE INDEX flows_unexpected ON flows USING btree (number) WHERE (unexpected_port IS TRUE);
CREATE INDEX traces_early ON traces USING btree (subject) WHERE (final IS FALSE);
CREATE INDEX traces_host ON traces USING btree (subject_key, number);
CREATE INDEX traces_label ON traces USING btree (label, number);
CREATE INDEX traces_seen ON traces USING btree (seen_us);
CREATE INDEX traces_subject ON traces USING btree (subject, number);
CREATE INDEX traces_suspicious ON traces USING btree (number) WHERE (suspicious IS TRUE);
CREATE INDEX tries_orig ON tries USING btree (orig_key, minute_us);
