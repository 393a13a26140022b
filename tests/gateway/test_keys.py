"""Keys: who comes in, as whom, and that nobody's secret goes where it should not."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import msgspec
import pytest
from anthropic import AsyncAnthropic
from click.testing import CliRunner
from openai import AsyncOpenAI, AuthenticationError
from tests.gateway.conftest import CHAT, gateway
from tests.gateway.scripted import Engine, hanging, until

from mars.cli import cli
from mars.core import events as ev
from mars.core.errors import InputError
from mars.gateway.keys import KeyRing, make_key
from mars.gateway.settings import GatewaySettings


def bearing(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


class TestFile:
    def test_a_key_is_shown_once_and_stands_nowhere(self, path: Path) -> None:
        said = CliRunner().invoke(cli, ["key", "ci", "--file", str(path), "--tenant", "batch"])
        assert said.exit_code == 0
        secret = said.stdout.strip()
        assert len(secret) > 40
        assert secret not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        found = KeyRing(path).find([(b"authorization", f"Bearer {secret}".encode())])
        assert found is not None
        assert (found.name, found.tenant, found.admin) == ("ci", "batch", False)

    def test_a_name_stands_for_one_key(self, path: Path) -> None:
        make_key(path, name="ci", tenant="", admin=False)
        with pytest.raises(InputError, match="a key named 'ci'"):
            make_key(path, name="ci", tenant="", admin=True)
        assert len(path.read_text().splitlines()) == 1

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("", "no key"),
            ('{"name": "a", "sha256": "short"}', "line 1"),
            ('\n{"name": "a", "sha256": "' + "0" * 64 + '", "rights": 1}', "line 2.*rights"),
            ("not json", "line 1"),
        ],
    )
    def test_a_file_that_is_none_is_refused(self, path: Path, text: str, what: str) -> None:
        path.write_text(text)
        with pytest.raises(InputError, match=what):
            KeyRing(path)

    def test_a_missing_file_is_refused_and_the_command_named(self, path: Path) -> None:
        with pytest.raises(InputError, match="mars key NAME"):
            KeyRing(path)

    def test_a_file_that_changes_is_read_again_and_a_bad_one_changes_nothing(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old = make_key(path, name="old", tenant="", admin=False)
        ring = KeyRing(path)
        new = make_key(path, name="new", tenant="", admin=False)
        assert ring.find([(b"x-api-key", new.encode())]) is None
        ring.look()
        assert ring.find([(b"x-api-key", new.encode())]) is not None
        path.write_text(path.read_text().splitlines()[1] + "\n")
        ring.look()
        assert ring.find([(b"x-api-key", old.encode())]) is None
        path.unlink()
        ring.look()
        assert ring.find([(b"x-api-key", new.encode())]) is not None
        assert "the keys stay as they were" in capsys.readouterr().err


class TestDoor:
    async def test_the_real_client_needs_a_key(self, engine: Engine, path: Path) -> None:
        secret = make_key(path, name="ci", tenant="batch", admin=False)
        async with gateway(engine.url, ring=KeyRing(path)) as rig:
            for api_key, may in (("sk-guess", False), (secret[:-1], False), (secret, True)):
                client = AsyncOpenAI(base_url=rig.url + "/v1", api_key=api_key, max_retries=0)
                rig.clients.push_async_callback(client.close)
                if not may:
                    with pytest.raises(AuthenticationError, match="mars key"):
                        await client.chat.completions.create(model="m", messages=[])
                    assert engine.seen == []
                    assert rig.events == []
                    continue
                answer = await client.chat.completions.create(model="m", messages=[])
                assert answer.choices[0].message.content == "Hello, world"
            assert rig.of(ev.SessionArrived)[0].tenant == "batch"

    async def test_anthropic_s_client_reads_that_its_key_is_unknown(
        self, engine: Engine, path: Path
    ) -> None:
        make_key(path, name="ci", tenant="", admin=False)
        async with gateway(engine.url, ring=KeyRing(path)) as rig:
            client = AsyncAnthropic(base_url=rig.url, api_key="none", max_retries=0)
            rig.clients.push_async_callback(client.close)
            with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
                await client.messages.create(model="m", max_tokens=1, messages=[])
            assert engine.seen == []

    @pytest.mark.parametrize("engine_key", ["", "sk-engine"])
    async def test_the_engine_sees_its_own_key_and_never_a_client_s(
        self, engine: Engine, path: Path, tmp_path: Path, engine_key: str
    ) -> None:
        secret = make_key(path, name="ci", tenant="", admin=False)
        settings = GatewaySettings()
        if engine_key:
            (tmp_path / "engine").write_text(engine_key + "\n")
            settings = GatewaySettings(engine_key_file=str(tmp_path / "engine"))
        async with gateway(engine.url, settings, ring=KeyRing(path)) as rig:
            for headers in (bearing(secret), {"X-Api-Key": secret}):
                assert (await rig.post("s", headers=headers)).status == 200
                assert secret.encode() not in b"".join(v for _, v in engine.last.headers)
                wanted = f"Bearer {engine_key}" if engine_key else None
                assert engine.last.header("authorization") == wanted

    async def test_without_keys_the_client_s_own_goes_on_to_the_engine(
        self, engine: Engine
    ) -> None:
        async with gateway(engine.url) as rig:
            assert (await rig.post("s", headers=bearing("sk-mine"))).status == 200
            assert engine.last.header("authorization") == "Bearer sk-mine"

    async def test_what_is_the_admin_s(self, engine: Engine, path: Path) -> None:
        user = make_key(path, name="user", tenant="", admin=False)
        admin = make_key(path, name="root", tenant="", admin=True)
        async with gateway(engine.url, ring=KeyRing(path)) as rig:
            for target in ("/mars/status", "/mars/sessions"):
                for headers, status in (({}, 401), (bearing(user), 403), (bearing(admin), 200)):
                    async with rig.http.get(rig.url + target, headers=headers) as response:
                        assert response.status == status
            async with rig.http.get(rig.url + "/health") as response:
                assert response.status == 200
            async with rig.http.get(rig.url + "/v1/models") as response:
                assert response.status == 401

    async def test_a_session_is_one_tenant_s(self, engine: Engine, path: Path) -> None:
        mine = make_key(path, name="mine", tenant="a", admin=False)
        theirs = make_key(path, name="theirs", tenant="b", admin=False)
        async with gateway(engine.url, ring=KeyRing(path)) as rig:
            engine.script = hanging
            open_call = rig.post("s", headers=bearing(mine))
            await until(lambda: engine.open == 1)
            response = await rig.post("s", headers=bearing(theirs))
            assert response.status == 403
            error = msgspec.json.decode(await response.read())["error"]
            assert error["type"] == "session_of_another_tenant"
            assert len(rig.of(ev.CallQueued)) == 1
            open_call.cancel()

    async def test_a_body_without_a_key_is_not_read(self, engine: Engine, path: Path) -> None:
        make_key(path, name="ci", tenant="", admin=False)
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 1
                yield b"x" * 100_000

        async with gateway(engine.url, ring=KeyRing(path)) as rig:
            response = await rig.http.post(rig.url + CHAT, data=endless())
            assert response.status == 401
            assert engine.seen == []
        assert sent * 100_000 < GatewaySettings().body_bytes
