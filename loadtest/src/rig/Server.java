// HTTP service of the JVM image: does before it listens what services do, on libraries of Debian.

import com.fasterxml.jackson.databind.ObjectMapper;
import com.google.common.cache.Cache;
import com.google.common.cache.CacheBuilder;
import com.google.common.collect.ImmutableMap;
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.Map;
import java.util.concurrent.Executors;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.springframework.beans.factory.support.BeanDefinitionBuilder;
import org.springframework.context.support.GenericApplicationContext;

public final class Server {
    /** A bean that others ask for. */
    public static final class Settings {
        public String name = "service";
        public int rows = 100;
    }

    /** A bean with a constructor that needs another one. */
    public static final class Rows {
        private final Cache<String, Settings> cache = CacheBuilder.newBuilder().maximumSize(100).build();
        private final ObjectMapper mapper = new ObjectMapper();
        private final Settings settings;

        public Rows(Settings settings) {
            this.settings = settings;
        }

        byte[] answer(int port, long born) throws Exception {
            Settings copy = mapper.readValue(mapper.writeValueAsBytes(settings), Settings.class);
            cache.put(copy.name, copy);
            Map<String, Object> answer = ImmutableMap.of(
                "pid", ProcessHandle.current().pid(), "port", port, "born", born, "rows", cache.size());
            return mapper.writeValueAsBytes(answer);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Logger log = LoggerFactory.getLogger(Server.class);
        Class.forName("org.postgresql.Driver");
        GenericApplicationContext context = new GenericApplicationContext();
        BeanDefinitionBuilder settings = BeanDefinitionBuilder.genericBeanDefinition(Settings.class);
        BeanDefinitionBuilder definition = BeanDefinitionBuilder.genericBeanDefinition(Rows.class);
        definition.addConstructorArgReference("settings");
        context.registerBeanDefinition("settings", settings.getBeanDefinition());
        context.registerBeanDefinition("rows", definition.getBeanDefinition());
        context.refresh();
        Rows rows = context.getBean(Rows.class);
        int port = Integer.parseInt(System.getenv("PORT"));
        long born = System.nanoTime();
        rows.answer(port, born);

        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.createContext("/", exchange -> {
            byte[] body;
            try {
                body = rows.answer(port, born);
            } catch (Exception error) {
                throw new java.io.IOException(error);
            }
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
        log.info("listening");
    }
}
